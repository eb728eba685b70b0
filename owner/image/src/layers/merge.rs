//! The second part of a build: the records in the order of the layers, oldest first.

use std::io;

use super::Layer;
use super::extract::{Span, at, read_again};
use super::record::{Change, RecordReader};
use crate::builder::BuildError;
use crate::ext4::{Ext4Error, FileContent, Writer};
use crate::limits::Limits;
use crate::progress::CancelFlag;

/// A skipped entry's place: the layer in the upper 24 bits, its number in the others.
const NUMBER_BITS: u32 = 40;

/// Makes the names of all layers; `spans` are those of `layers`, the oldest first.
pub(crate) fn merge(
    writer: &mut Writer,
    mut records: RecordReader,
    layers: &[Layer],
    spans: &[Span],
    limits: Limits,
    cancel: &CancelFlag,
) -> Result<(), BuildError> {
    for (index, (layer, span)) in layers.iter().zip(spans).enumerate() {
        merge_layer(writer, &mut records, index, *span, limits, cancel)
            .map_err(|error| error.in_layer(index, layer))?;
    }
    let awaited = writer.take_awaited();
    for (index, layer) in layers.iter().enumerate() {
        let first = token(index, 0);
        let beyond = token(index + 1, 0);
        let mut left = awaited.keys().filter(|token| (first..beyond).contains(*token)).count();
        if left == 0 {
            continue;
        }
        tracing::debug!(layer = index + 1, files = left, "read a layer again");
        let wanted = |number| {
            let inode = awaited.get(&token(index, number)).copied();
            left -= usize::from(inode.is_some());
            inode
        };
        read_again(layer, writer, cancel, wanted)
            .and_then(|()| if left == 0 { Ok(()) } else { Err(changed()) })
            .map_err(|error| error.in_layer(index, layer))?;
    }
    Ok(())
}

fn changed() -> BuildError {
    BuildError::Open { source: io::Error::other("the layer has changed since it was read") }
}

fn token(layer: usize, number: u64) -> u64 {
    ((layer as u64) << NUMBER_BITS) | number
}

fn merge_layer(
    writer: &mut Writer,
    records: &mut RecordReader,
    index: usize,
    span: Span,
    limits: Limits,
    cancel: &CancelFlag,
) -> Result<(), BuildError> {
    writer.begin_layer().map_err(|source| at(b"", source))?;
    let failed = |source| BuildError::Records { source };
    records.seek(span.start).map_err(failed)?;
    while records.position() < span.end {
        cancel.check()?;
        let (path, change) = records.next().map_err(failed)?;
        apply(writer, &path, &change, index).map_err(|source| at(&path, source))?;
        limits.check_inodes(writer)?;
    }
    Ok(())
}

fn apply(writer: &mut Writer, path: &[u8], change: &Change, layer: usize) -> Result<(), Ext4Error> {
    match change {
        Change::File(metadata, content) => writer.add_sealed(path, content, metadata).map(drop),
        Change::Skipped(metadata, number) => {
            let inode = writer.add_file(path, FileContent::new(), metadata)?;
            writer.await_content(inode, token(layer, *number));
            Ok(())
        }
        Change::HardLink(target) => writer.add_hard_link(path, target).map(drop),
        Change::Other(metadata, kind) => writer.add(path, kind, metadata).map(drop),
        Change::Whiteout(name) => writer.white_out(path, name),
        Change::Opaque => writer.white_out_below(path),
    }
}
