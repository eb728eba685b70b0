//! `banger vm forward`: ports of this host that lead into a machine for as long as the command runs.

use std::io;
use std::time::Duration;

use banger_agent_api::{Call, ConnectCall, Empty, ErrorCode, PortProtocol, carry_connection};
use banger_daemon_api::vm::Vm;
use banger_types::{Publication, VmId};
use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::OneVm;
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{agent, daemon};

/// Connections at a time, of all ports; further clients wait in the sockets' queues.
const MOST: usize = 256;
/// How long after a connection that could not be taken the next is.
const PATIENCE: Duration = Duration::from_millis(100);

/// Arguments of `banger vm forward`.
#[derive(Args, Debug)]
#[command(
    after_help = "Until Ctrl-C, or until the machine ends. The host's port is at 127.0.0.1 unless an address is
given; 0 takes any. It reaches what listens on the machine's own loopback address, too, and
needs no network. banger vm ports publish keeps a port open for as long as the machine runs.

Examples:
  banger vm forward box 8080:80
  banger vm forward box 0:5432 0.0.0.0:8443:443"
)]
pub struct ForwardArgs {
    #[command(flatten)]
    vm: OneVm,
    #[arg(help = "TCP ports: [HOST_IP:]HOST:GUEST")]
    #[arg(required = true, value_name = "PORTS")]
    ports: Vec<Publication>,
}

/// Forwards until it is interrupted, or the machine ends.
pub async fn run(ui: &Ui, args: &ForwardArgs) -> Result<(), CliError> {
    if let Some(udp) = args.ports.iter().find(|port| port.protocol != PortProtocol::Tcp) {
        return Err(CliError::usage(format!("{udp} is no TCP port"))
            .hint("banger vm ports publish leads UDP into a machine"));
    }
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get_running(&client, &args.vm.vm).await?;
    let mut listeners = JoinSet::new();
    for port in &args.ports {
        let listener = TcpListener::bind(port.host).await.map_err(|error| in_use(port, &error))?;
        let address = listener.local_addr().map_err(|error| in_use(port, &error))?;
        ui.line(format!("{address} -> {}/{}", port.guest, port.protocol))?;
        let call = ConnectCall { protocol: port.protocol, port: port.guest };
        let most = (MOST / args.ports.len()).max(1);
        listeners.spawn(serve(*ui, (listener, most), (client.clone(), vm.id.clone()), call));
    }
    tokio::select! {
        // That is how it is meant to end.
        _ = interrupts.next() => Ok(()),
        state = super::wait::end_of(&client, &vm) => {
            let state = state?.map_or("deleted".to_owned(), |vm: Vm| vm.state.to_string());
            Err(CliError::new(format!("VM {} is {state}, and forwarding ends with it", vm.name))
                .hint(format!("banger vm show {}", vm.name)))
        }
    }
}

fn in_use(port: &Publication, error: &io::Error) -> CliError {
    let made = CliError::new(format!("cannot listen at {}", port.host)).because(error);
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            made.hint(format!("take another port, or any: 0:{}", port.guest))
        }
        _ => made,
    }
}

async fn serve(
    ui: Ui,
    (listener, most): (TcpListener, usize),
    (client, vm): (Client, VmId),
    call: ConnectCall,
) {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < most;
        tokio::select! {
            accepted = listener.accept(), if room => {
                let Ok((socket, _)) = accepted else {
                    // One that went away again is nobody's loss; where descriptors are lacking it
                    // would come again at once.
                    tokio::time::sleep(PATIENCE).await;
                    continue;
                };
                let (client, vm, call) = (client.clone(), vm.clone(), call.clone());
                connections.spawn(async move { connection(ui, socket, (&client, &vm), call).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    ui: Ui,
    mut socket: TcpStream,
    (client, vm): (&Client, &VmId),
    call: ConnectCall,
) {
    let port = call.port;
    let ended = match agent::call::<Empty>(client, vm, Call::Connect(call)).await {
        Ok((Empty {}, stream)) => {
            // A failure only makes it slower.
            let _ = socket.set_nodelay(true);
            carry_connection(socket.split(), stream).await.unwrap_or(false)
        }
        Err(error) => {
            if error.is_guest_code(ErrorCode::Refused) {
                ui.warning(format_args!("nobody in the machine listens on port {port}"));
            } else {
                ui.warning(&error);
            }
            false
        }
    };
    if !ended {
        // What the guest refused or broke off is not to look like an end.
        let _ = socket.set_zero_linger();
    }
}
