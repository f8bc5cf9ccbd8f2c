//! Client ids in use by this process: two connections with one id would throw each other out for ever.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use fieldstream_engine_api::ConnectContext;

use super::options::Broker;

static IN_USE: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

/// Holds a client id at a broker while a connection uses it.
#[derive(Debug)]
pub(crate) struct ClientIdGuard {
    key: (String, String),
}

impl ClientIdGuard {
    /// Takes the id, unless another connection of this process has it.
    ///
    /// # Errors
    /// What is wrong and what to do, for a person.
    pub(crate) fn take(broker: &Broker, client_id: &str) -> Result<Self, String> {
        let key = (broker.address(), client_id.to_owned());
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if in_use.insert(key.clone()) {
            return Ok(Self { key });
        }
        Err(format!("the client id `{client_id}` is in use by another connection of this process; set `client_id` to another one"))
    }
}

impl Drop for ClientIdGuard {
    fn drop(&mut self) {
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// The client id of a source that names none. The same after a restart, so that the broker finds the session again.
pub(crate) fn default_client_id(context: &ConnectContext) -> String {
    format!("fieldstream-{}-{}", context.pipeline, context.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_taken_once_per_broker() {
        let broker = Broker { host: "guard.test".into(), port: 1, tls: false };
        let other = Broker { port: 2, ..broker.clone() };
        let first = ClientIdGuard::take(&broker, "a").expect("free");
        assert!(ClientIdGuard::take(&broker, "a").is_err());
        assert!(ClientIdGuard::take(&broker, "b").is_ok());
        assert!(ClientIdGuard::take(&other, "a").is_ok());
        drop(first);
        assert!(ClientIdGuard::take(&broker, "a").is_ok());
    }
}
