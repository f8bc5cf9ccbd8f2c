//! Where a checkpoint store lies: a folder, or the URL of an S3-compatible object store.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::objects::Objects;
use crate::{CheckpointStore, StoreError};

/// How long one request is tried again. Who waits for longer is told, and asks anew by itself.
const AGAIN: Duration = Duration::from_secs(20);

/// Where checkpoints lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of the local disk.
    Folder(PathBuf),
    /// Keys under a prefix in a bucket: `s3://bucket/prefix`.
    Bucket(Url),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str = "expected a folder or s3://bucket/prefix";
        if !text.contains("://") {
            return if text.is_empty() { Err(WANTED.to_owned()) } else { Ok(Self::Folder(text.into())) };
        }
        let url = Url::parse(text).map_err(|e| format!("{e}; {WANTED}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials do not belong into the address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned());
        }
        if url.scheme() != "s3" || url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
            return Err(WANTED.to_owned());
        }
        Ok(Self::Bucket(url))
    }
}

impl Location {
    /// The place that was given, or else the one in a node's data directory.
    #[must_use]
    pub fn given_or_in(given: Option<&Self>, data_dir: &FsPath) -> Self {
        given.cloned().unwrap_or_else(|| Self::Folder(data_dir.join("state")))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(url) => url.fmt(f),
        }
    }
}

impl CheckpointStore {
    /// Opens a store, making its folder if need be. A bucket must be there already; its endpoint, region and credentials are read
    /// from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...).
    ///
    /// # Errors
    /// If it cannot be reached, or does not refuse to create a key twice.
    pub async fn open_at(location: &Location) -> Result<Self, StoreError> {
        match location {
            Location::Folder(folder) => Self::open(folder).await,
            Location::Bucket(url) => Self::probed(bucket(url)?).await,
        }
    }

    /// Opens a store to look into it. Nothing is written.
    ///
    /// # Errors
    /// If there is no such folder, or the bucket's settings are wrong.
    pub fn look_at(location: &Location) -> Result<Self, StoreError> {
        match location {
            Location::Folder(folder) => Self::look(folder),
            Location::Bucket(url) => Ok(Self { objects: bucket(url)? }),
        }
    }
}

fn bucket(url: &Url) -> Result<Objects, StoreError> {
    let retry = RetryConfig { retry_timeout: AGAIN, ..RetryConfig::default() };
    let builder = AmazonS3Builder::from_env();
    // Plain HTTP only where the endpoint says so itself, as a store on this machine or behind a proxy does.
    let plain = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(|at| at.starts_with("http://"));
    let store = builder
        .with_bucket_name(url.host_str().unwrap_or_default())
        .with_retry(retry)
        .with_allow_http(plain)
        .build()
        .map_err(|e| StoreError::io(format!("open {url}"), e))?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| StoreError::io(format!("open {url}"), e))?;
    Ok(Objects::remote(Arc::new(PrefixStore::new(store, prefix)), url.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match text.parse::<Location>() {
            Ok(Location::Folder(folder)) => format!("folder {}", folder.display()),
            Ok(Location::Bucket(url)) => format!("bucket {} {}", url.host_str().unwrap_or_default(), url.path()),
            Err(why) => why,
        }
    }

    #[test]
    fn a_place_is_a_folder_or_a_bucket() {
        assert_eq!(read("/var/lib/fieldstream"), "folder /var/lib/fieldstream");
        assert_eq!(read("state"), "folder state");
        assert_eq!(read("s3://plant/line-1/state"), "bucket plant /line-1/state");
        assert_eq!(read("s3://plant"), "bucket plant ");
    }

    #[test]
    fn what_cannot_be_a_place_says_what_is_wanted_and_shows_no_secret() {
        for text in ["", "s3://", "gs://plant/x", "s3://plant/x?versionId=1", "https://s3.example/plant"] {
            assert!(read(text).contains("expected a folder or s3://bucket/prefix"), "{text}: {}", read(text));
        }
        let answer = read("s3://key:hidden@plant/x");
        assert!(answer.contains("AWS_SECRET_ACCESS_KEY") && !answer.contains("hidden"), "{answer}");
    }
}
