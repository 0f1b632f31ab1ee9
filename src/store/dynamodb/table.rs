//! Creates the table.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TimeToLiveSpecification,
};

use super::Table;
use crate::store::failure::{Cause, Failure};
use crate::sys::random::jittered;

/// It takes DynamoDB some seconds. A process that waits for longer asks again.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether it is ready.
const PAUSE: Duration = Duration::from_millis(500);

/// A key under which there is no lock.
const PROBE: &str = ".serializer.probe";

impl Table {
    /// Creates the table, and returns when it can be used; an existing one is fine. One that is
    /// being deleted is created when it is gone.
    pub(super) async fn create(&self) -> Result<(), Failure> {
        let cannot = |_| Failure::permanent("the table's description is not complete");
        let (name, text) = (&self.names.key, ScalarAttributeType::S);
        let attribute = AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(text)
            .build()
            .map_err(cannot)?;
        let key = KeySchemaElement::builder()
            .attribute_name(name)
            .key_type(KeyType::Hash)
            .build()
            .map_err(cannot)?;
        let request = self
            .client
            .create_table()
            .table_name(&self.names.table)
            .billing_mode(BillingMode::PayPerRequest);
        let request = request.attribute_definitions(attribute).key_schema(key);
        let (begun, mut is_ours) = (Instant::now(), false);
        // Ends with the time.
        loop {
            let refused = if is_ours { None } else { request.clone().send().await.err() };
            is_ours |= refused.is_none();
            let failure = match self.read(PROBE).await {
                Ok(_) => break,
                Err(failure) => failure,
            };
            match refused {
                Some(error) if error.code() == Some("AccessDeniedException") => {
                    let failure = self.failure(&error, "dynamodb:CreateTable");
                    let hint = format!(
                        "`serializer initialize` with that permission creates it; or the table is \
                         in another region than `{}`",
                        self.region
                    );
                    return Err(Failure::permanent(format!(
                        "there is no {self}, and {}",
                        failure.why
                    ))
                    .with_hint(hint));
                }
                Some(error) if error.code() != Some("ResourceInUseException") => {
                    return Err(self.failure(&error, "dynamodb:CreateTable"));
                }
                _ if failure.cause == Cause::Permanent => return Err(failure),
                _ if begun.elapsed() >= LIMIT => {
                    return Err(Failure::transient(format!(
                        "{self} is not ready: {}",
                        failure.why
                    )));
                }
                _ => tokio::time::sleep(jittered(PAUSE)).await,
            }
        }
        if is_ours {
            tracing::info!("made the {self}");
            self.expire().await;
        }
        Ok(())
    }

    /// Lets DynamoDB remove unused items. Without that permission they stay, which costs next to
    /// nothing.
    async fn expire(&self) {
        let setting =
            TimeToLiveSpecification::builder().enabled(true).attribute_name(&self.names.ttl);
        let Ok(setting) = setting.build() else { return };
        let request = self.client.update_time_to_live().table_name(&self.names.table);
        if let Err(error) = request.time_to_live_specification(setting).send().await {
            tracing::debug!(
                "unused items will stay in the table: {}",
                error.code().unwrap_or("no answer")
            );
        }
    }
}
