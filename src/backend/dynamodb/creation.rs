//! Makes the table.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus, TimeToLiveSpecification,
};

use super::account::Place;
use super::failures;
use super::options::Options;
use super::read_item;
use crate::backend::failure::{Cause, Failure, jittered};

/// It takes DynamoDB some seconds. Who waits for longer asks again.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether it is ready.
const PAUSE: Duration = Duration::from_millis(250);

/// Makes the table, and returns when locks can be kept there; if it is there, that is fine.
///
/// # Errors
/// When it cannot be made, or is not ready in time.
pub async fn prepare(client: &Client, options: &Options, place: &Place) -> Result<(), Failure> {
    let is_ours = match create(client, options).await? {
        Ok(()) => true,
        Err(error) => {
            let (code, failure) = (error.code().map(str::to_owned), failures::of(&error, "dynamodb:CreateTable", place));
            match code.as_deref() {
                Some("ResourceInUseException") => {}
                // Who may not make it can use the one that somebody else has made meanwhile.
                Some("AccessDeniedException") if read_item(client, options, place, PROBE).await.is_ok() => return Ok(()),
                Some("AccessDeniedException") => return Err(not_permitted(failure, place)),
                _ => return Err(failure),
            }
            false
        }
    };
    let begun = Instant::now();
    // Ends with the time.
    loop {
        match read_item(client, options, place, PROBE).await {
            Ok(_) => break,
            Err(failure) if failure.cause == Cause::Permanent => return Err(failure),
            Err(failure) if begun.elapsed() >= LIMIT => {
                return Err(Failure::transient(format!("the {} is not ready: {}", place.table(), failure.why)));
            }
            Err(_) if !is_ours => not_going(client, options, place).await?,
            Err(_) => {}
        }
        tokio::time::sleep(jittered(PAUSE)).await;
    }
    if is_ours {
        tracing::info!("made the {}", place.table());
        expire(client, options).await;
    }
    Ok(())
}

/// A key under which nobody looks for a lock.
const PROBE: &str = ".serializer.probe";

type Created = Result<(), aws_sdk_dynamodb::error::SdkError<aws_sdk_dynamodb::operation::create_table::CreateTableError>>;

async fn create(client: &Client, options: &Options) -> Result<Created, Failure> {
    let cannot = |_| Failure::permanent("the table's description is not complete");
    let (name, text) = (&options.key, ScalarAttributeType::S);
    let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(text).build().map_err(cannot)?;
    let key = KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash).build().map_err(cannot)?;
    let request = client.create_table().table_name(&options.table).billing_mode(BillingMode::PayPerRequest);
    Ok(request.attribute_definitions(attribute).key_schema(key).send().await.map(|_| ()))
}

/// Somebody else's is there, or will be, unless it is being deleted. Who may not ask that waits.
async fn not_going(client: &Client, options: &Options, place: &Place) -> Result<(), Failure> {
    let is_going = match client.describe_table().table_name(&options.table).send().await {
        Ok(described) => described.table.and_then(|table| table.table_status) == Some(TableStatus::Deleting),
        Err(error) => error.code() == Some("ResourceNotFoundException"),
    };
    if is_going { Err(Failure::transient(format!("the {} is being deleted", place.table()))) } else { Ok(()) }
}

fn not_permitted(failure: Failure, place: &Place) -> Failure {
    let why = format!("there is no {}, and {}", place.table(), failure.why);
    Failure::permanent(why).with_hint(format!(
        "`serializer initialize` by somebody who may make it; or the table is in another region than `{}`",
        place.region()
    ))
}

/// Lets DynamoDB remove what nobody uses any more. Who may not ask for that keeps it, which costs next to nothing.
async fn expire(client: &Client, options: &Options) {
    let Ok(setting) = TimeToLiveSpecification::builder().enabled(true).attribute_name(&options.ttl).build() else { return };
    let asked = client.update_time_to_live().table_name(&options.table).time_to_live_specification(setting).send().await;
    if let Err(error) = asked {
        tracing::debug!("unused locks will stay in the table: {}", error.code().unwrap_or("no answer"));
    }
}
