//! The node's addresses as the kernel tells them, over rtnetlink.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A new interface brings several messages at once; they are read as one change.
const SETTLE: Duration = Duration::from_millis(100);
/// Wait before the kernel is asked again after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Why the addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum AddressesError {
    /// No netlink socket.
    #[error("cannot open a netlink socket for this node's addresses")]
    Open(#[source] io::Error),
    /// The kernel does not tell.
    #[error("cannot read this node's addresses: {0}")]
    Read(rtnetlink::Error),
    /// The socket was closed.
    #[error("the kernel's messages about addresses ended")]
    Ended,
}

/// Follows the node's addresses until every receiver is gone. The first value is read before this returns.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn addresses() -> Result<watch::Receiver<BTreeSet<IpAddr>>, AddressesError> {
    let (sender, receiver) = watch::channel(BTreeSet::new());
    let mut follower = Follower::start(&sender).await?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                error = follower.follow(&sender) => tracing::warn!(%error, "lost sight of this node's addresses"),
            }
            follower = loop {
                tokio::time::sleep(RETRY).await;
                match Follower::start(&sender).await {
                    Ok(follower) => break follower,
                    Err(_) if sender.is_closed() => return,
                    Err(error) => tracing::warn!(%error, "still no sight of this node's addresses"),
                }
            };
        }
    });
    Ok(receiver)
}

/// One netlink connection that hears of changes and answers questions.
struct Follower {
    handle: Handle,
    messages: Pin<Box<dyn Stream<Item = ()> + Send>>,
    _connection: AbortOnDropHandle<()>,
}

impl Follower {
    /// Subscribes first and reads then, so that no change falls between.
    async fn start(sender: &watch::Sender<BTreeSet<IpAddr>>) -> Result<Self, AddressesError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(AddressesError::Open)?;
        let follower = Self {
            handle,
            messages: Box::pin(messages.map(drop)),
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        };
        Self::publish(&follower.handle, sender).await?;
        Ok(follower)
    }

    /// Publishes each change; returns once it cannot.
    async fn follow(&mut self, sender: &watch::Sender<BTreeSet<IpAddr>>) -> AddressesError {
        while self.messages.next().await.is_some() {
            tokio::time::sleep(SETTLE).await;
            while let Some(Some(())) = self.messages.next().now_or_never() {}
            if let Err(error) = Self::publish(&self.handle, sender).await {
                return error;
            }
        }
        AddressesError::Ended
    }

    async fn publish(handle: &Handle, sender: &watch::Sender<BTreeSet<IpAddr>>) -> Result<(), AddressesError> {
        let mut messages = handle.address().get().execute();
        let mut addresses = BTreeSet::new();
        while let Some(message) = messages.try_next().await.map_err(AddressesError::Read)? {
            addresses.extend(address(&message));
        }
        sender.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
        Ok(())
    }
}

/// The node's own address in this message. An IPv6 address that is not yet, or never will be, this node's alone is left
/// out; the kernel sends another message once it is.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    if message.header.flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed) {
        return None;
    }
    // On a point-to-point link, `Address` is the other side's.
    let own = |attribute: &AddressAttribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None };
    let shown =
        |attribute: &AddressAttribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None };
    message.attributes.iter().find_map(own).or_else(|| message.attributes.iter().find_map(shown))
}
