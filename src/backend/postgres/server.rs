//! A session with a server, made when it is needed.

use tokio::runtime::Runtime;

use super::connect;
use super::link::Link;
use super::options::{Options, Surroundings};
use crate::backend::network::runtime;
use crate::backend::remote::Failure;
use crate::store::StoreSettings;

/// A server, and the session with it if there is one.
pub struct Server {
    pub options: Options,
    pub runtime: Option<Runtime>,
    pub link: Option<Link>,
}

impl Server {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        Ok(Self { options: Options::new(settings, &Surroundings::here())?, runtime: None, link: None })
    }

    /// Whether the session can be asked nothing, because it sleeps in line.
    pub fn is_standing(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_open() && link.is_standing())
    }

    /// Asks it something, connecting if need be.
    pub fn ask<T>(&mut self, question: impl AsyncFnOnce(&mut Link) -> Result<T, Failure>) -> Result<T, Failure> {
        let Self { options, runtime, link } = self;
        let runtime = runtime::made(runtime)?;
        runtime.block_on(async {
            *link = link.take().filter(Link::is_open);
            if link.as_ref().is_some_and(Link::is_standing) {
                let mut aside = connect::connect(options).await?;
                let answer = question(&mut aside).await;
                aside.close();
                return answer;
            }
            let link = match link {
                Some(link) => link,
                None => link.insert(connect::connect(options).await?),
            };
            question(link).await
        })
    }

    pub fn disconnect(&mut self) {
        let Self { runtime, link, .. } = self;
        if let (Some(runtime), Some(link)) = (runtime, link.take()) {
            let _inside = runtime.enter();
            link.close();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.disconnect();
    }
}
