//! Imports a Debian kernel package into a store and builds an initrd with a stand-in agent.
#![expect(clippy::print_stdout, reason = "an example for people")]

use banger_image::{AgentBinary, CancelFlag, KernelStore, NewKernel, NoProgress, build_initrd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: import-kernel STORE NAME PACKAGE AGENT";
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || arguments.next().ok_or(usage);
    let (store, name, package, agent) = (next()?, next()?, next()?, next()?);
    let store = std::path::PathBuf::from(store);
    let new = NewKernel {
        name: name.to_str().ok_or(usage)?.parse()?,
        source: "import".into(),
        replace: true,
    };
    let started = std::time::Instant::now();
    let package = std::fs::File::open(package)?;
    let kernel = KernelStore::open(store.join("kernels"))?.import(
        &new,
        package,
        None,
        &NoProgress,
        &CancelFlag::default(),
    )?;
    println!("{:.3} s\n{:#?}", started.elapsed().as_secs_f64(), kernel.manifest);
    let initrd =
        build_initrd(&AgentBinary::new(&std::fs::read(agent)?), &kernel, &store.join("cache"))?;
    println!("{}", initrd.display());
    Ok(())
}
