//! Long runs of the real processes, `chaos`, `soak` and `stall`: tests of the one integration-test binary, which take their settings from
//! the environment.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const OPTIONS: [&str; 3] = ["minutes", "seed", "report"];

/// Reads `--name value` pairs as variables of the run.
fn settings(run: &str, words: &[&str]) -> Result<Vec<(String, String)>> {
    let pairs = words.chunks(2).map(|pair| {
        let &[name, value] = pair else { bail!("{} needs a value", pair.concat()) };
        let known = OPTIONS.iter().find(|option| name.strip_prefix("--") == Some(option));
        let option = known.with_context(|| format!("unknown option {name}; there are --minutes, --seed and --report"))?;
        // A path is relative to where cargo was called, not to where the test runs.
        let value = if *option == "report" { std::path::absolute(value)?.display().to_string() } else { value.to_owned() };
        Ok((format!("FIELDSTREAM_{}_{}", run.to_uppercase(), option.to_uppercase()), value))
    });
    pairs.collect()
}

/// Runs it, and fails as it does. `test` is the name of the test.
pub(crate) fn run(root: &Path, run: &str, test: &str, words: &[&str]) -> Result<()> {
    let settings = settings(run, words)?;
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root).output().context("git could not be run")?;
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--locked", "--test", "it", "--", test, "--exact", "--nocapture"]).current_dir(root);
    command.env("FIELDSTREAM_TEST_CTL", root.join("scripts/service"));
    command.env("FIELDSTREAM_TEST_COMMIT", String::from_utf8_lossy(&commit.stdout).trim());
    let status = command.envs(settings).status().context("cargo could not be run")?;
    if status.success() { Ok(()) } else { bail!("{run} has found something, see above") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_variables() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let found = settings("chaos", &["--minutes", "60", "--seed", "7"]).expect("known options");
        assert_eq!(found, [pair("FIELDSTREAM_CHAOS_MINUTES", "60"), pair("FIELDSTREAM_CHAOS_SEED", "7")]);
        assert!(settings("soak", &["--minutes"]).is_err());
        assert!(settings("soak", &["--hours", "1"]).is_err());
        assert!(settings("soak", &["minutes", "1"]).is_err());
    }
}
