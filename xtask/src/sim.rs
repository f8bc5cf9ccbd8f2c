//! Deterministic simulation: `tests/it/sim` with seeds of one's own. Nothing is built for it but the one test binary.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What to simulate.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    seed: u64,
    count: u64,
    release: bool,
}

/// `--seed N [--count K] [--release]`.
fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options { seed: 0, count: 1, release: false };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let text = words.next().with_context(|| format!("{word} wants a number"))?;
            text.parse().with_context(|| format!("{word} {text}: not a number"))
        };
        match *word {
            "--seed" => options.seed = number()?,
            "--count" => options.count = number()?,
            "--release" => options.release = true,
            other => bail!("{other} is not known; sim takes --seed N, --count K and --release"),
        }
    }
    Ok(options)
}

/// Runs the seeds; one alone prints its trace.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let Options { seed, count, release } = parse(arguments)?;
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--workspace", "--test", "it"]).args(release.then_some("--release"));
    command.args(["--", "--exact", "sim::seeds", "--nocapture"]).current_dir(root);
    command.env("FIELDSTREAM_SIM_SEED", seed.to_string()).env("FIELDSTREAM_SIM_COUNT", count.to_string());
    let status = command.status().context("cargo could not be run")?;
    if status.success() { Ok(()) } else { bail!("a seed failed, see above; `cargo xtask sim --seed N` alone prints its trace") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_strangers_refused() {
        let read = |text: &str| parse(&text.split_whitespace().collect::<Vec<_>>());
        assert_eq!(read("--seed 7 --count 20 --release").unwrap(), Options { seed: 7, count: 20, release: true });
        assert_eq!(read("").unwrap(), Options { seed: 0, count: 1, release: false });
        assert!(read("--seed").is_err() && read("--seed x").is_err() && read("--seeds 1").is_err());
    }
}
