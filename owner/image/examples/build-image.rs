//! Builds an ext4 image from a tar stream on standard input and prints what it found.
#![expect(clippy::print_stdout, reason = "an example for people")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = std::env::args_os().nth(1).ok_or("usage: build-image OUTPUT < TAR")?;
    let output = std::path::PathBuf::from(output);
    let seed = output.with_extension("seed.tar");
    let built = banger_image::build_image(
        std::io::stdin().lock(),
        banger_image::BuildPaths { image: &output, work_seed: Some(&seed) },
        &banger_image::BuildOptions::default(),
        &Stages(std::time::Instant::now()),
        &banger_image::CancelFlag::default(),
    )?;
    println!("{built:#?}");
    Ok(())
}

struct Stages(std::time::Instant);

impl banger_image::Progress for Stages {
    fn stage(&self, name: &str) {
        println!("{:.3} {name}", self.0.elapsed().as_secs_f64());
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}
