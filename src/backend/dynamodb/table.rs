//! Creates the table.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus, TimeToLiveSpecification,
};

use super::Table;
use crate::backend::failure::{Cause, Failure};
use crate::backend::retry::jittered;

/// It takes DynamoDB some seconds. A process that waits for longer asks again.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether it is ready.
const PAUSE: Duration = Duration::from_millis(250);

/// A key under which there is no lock.
const PROBE: &str = ".serializer.probe";

impl Table<'_> {
    /// Creates the table, and returns when it can be used; an existing one is fine.
    pub(super) async fn create(&self) -> Result<(), Failure> {
        let is_ours = self.is_created().await?;
        if is_ours.is_none() {
            return Ok(());
        }
        let is_ours = is_ours == Some(true);
        let begun = Instant::now();
        // Ends with the time.
        loop {
            match self.read(PROBE).await {
                Ok(_) => break,
                Err(failure) if failure.cause == Cause::Permanent => return Err(failure),
                Err(failure) if begun.elapsed() >= LIMIT => {
                    return Err(Failure::transient(format!("{self} is not ready: {}", failure.why)));
                }
                Err(_) if !is_ours => self.check_that_it_comes().await?,
                Err(_) => {}
            }
            tokio::time::sleep(jittered(PAUSE)).await;
        }
        if is_ours {
            tracing::info!("made the {self}");
            self.expire().await;
        }
        Ok(())
    }

    /// Whether this process has created it; `None` if it is there, and this process may not create one.
    async fn is_created(&self) -> Result<Option<bool>, Failure> {
        let cannot = |_| Failure::permanent("the table's description is not complete");
        let (name, text) = (&self.options.key, ScalarAttributeType::S);
        let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(text);
        let key = KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash);
        let request = self.client.create_table().table_name(&self.options.table);
        let request = request.billing_mode(BillingMode::PayPerRequest);
        let request = request.attribute_definitions(attribute.build().map_err(cannot)?);
        let Err(error) = request.key_schema(key.build().map_err(cannot)?).send().await else {
            return Ok(Some(true));
        };
        let failure = self.failure(&error, "dynamodb:CreateTable");
        match error.code() {
            Some("ResourceInUseException") => Ok(Some(false)),
            Some("AccessDeniedException") if self.read(PROBE).await.is_ok() => Ok(None),
            Some("AccessDeniedException") => {
                let hint = format!(
                    "`serializer initialize` with that permission creates it; or the table is in another region than \
                     `{}`",
                    self.region
                );
                Err(Failure::permanent(format!("there is no {self}, and {}", failure.why)).with_hint(hint))
            }
            _ => Err(failure),
        }
    }

    /// Fails if the table is being deleted. Without the permission to ask that, it is waited for.
    async fn check_that_it_comes(&self) -> Result<(), Failure> {
        let is_going = match self.client.describe_table().table_name(&self.options.table).send().await {
            Ok(described) => described.table.and_then(|table| table.table_status) == Some(TableStatus::Deleting),
            Err(error) => error.code() == Some("ResourceNotFoundException"),
        };
        if is_going { Err(Failure::transient(format!("the {self} is being deleted"))) } else { Ok(()) }
    }

    /// Lets DynamoDB remove unused items. Without that permission they stay, which costs next to nothing.
    async fn expire(&self) {
        let setting = TimeToLiveSpecification::builder().enabled(true).attribute_name(&self.options.ttl);
        let Ok(setting) = setting.build() else { return };
        let request = self.client.update_time_to_live().table_name(&self.options.table);
        if let Err(error) = request.time_to_live_specification(setting).send().await {
            tracing::debug!("unused items will stay in the table: {}", error.code().unwrap_or("no answer"));
        }
    }
}
