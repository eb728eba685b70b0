//! A TCP connection's bytes on the stream of a connect call, as the host's side carries them.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::frame::Frame;
use crate::wire::{FrameReader, FrameWriter, WireError};

/// Carries bytes between a socket's two halves and the guest until both directions have ended, which
/// is true, or one broke off.
///
/// # Errors
/// The stream to the guest failed, or what came on it was no frame.
pub async fn carry_connection(
    (mut from_client, mut to_client): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    stream: impl AsyncRead + AsyncWrite,
) -> Result<bool, WireError> {
    let (from_guest, to_guest) = tokio::io::split(stream);
    let (mut from_guest, mut to_guest) = (FrameReader::new(from_guest), FrameWriter::new(to_guest));
    let down = async {
        while let Some(frame) = from_guest.next().await? {
            let written = match frame {
                Frame::Data(bytes) => to_client.write_all(&bytes).await,
                Frame::DataEnd => return Ok(to_client.shutdown().await.is_ok()),
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        Ok::<bool, WireError>(false)
    };
    let up = to_guest.send_all_of(&mut from_client);
    {
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        let (mut client_ended, mut guest_ended) = (false, false);
        while !(client_ended && guest_ended) {
            let whole = tokio::select! {
                ended = &mut down, if !guest_ended => { guest_ended = true; ended? }
                ended = &mut up, if !client_ended => { client_ended = true; ended? }
            };
            if !whole {
                return Ok(false);
            }
        }
    }
    // Without it the stream's end would overtake what the guest has not read yet.
    to_guest.shutdown().await.map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn both_directions_end_by_themselves_and_a_break_is_no_end() {
        for is_whole in [true, false] {
            let (mut client, socket) = tokio::io::duplex(64);
            let (guest, stream) = tokio::io::duplex(64);
            let carried = tokio::spawn(carry_connection(tokio::io::split(socket), stream));
            let (from_host, to_host) = tokio::io::split(guest);
            let (mut from_host, mut to_host) =
                (FrameReader::new(from_host), FrameWriter::new(to_host));
            client.write_all(b"ask").await.unwrap();
            let asked = from_host.next().await.unwrap();
            assert_eq!(asked, Some(Frame::Data(Bytes::from_static(b"ask"))));
            client.shutdown().await.unwrap();
            assert_eq!(from_host.next().await.unwrap(), Some(Frame::DataEnd));
            // The other direction goes on.
            to_host.send(&Frame::Data(Bytes::from_static(b"answer"))).await.unwrap();
            if is_whole {
                to_host.send(&Frame::DataEnd).await.unwrap();
            } else {
                to_host.shutdown().await.unwrap();
            }
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
            assert_eq!(carried.await.unwrap().unwrap(), is_whole);
        }
    }
}
