//! What a lock's item looks like. All attributes are named by placeholders, because DynamoDB reserves many words.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;

use super::REPAIR;
use super::options::Options;
use crate::backend::failure::{Failure, Row};
use crate::record::{Entry, Record};

/// The usual key.
pub const NAME: &str = "name";
/// The number of the state; never goes back.
const VERSION: &str = "version";
/// Who holds it; missing when nobody does.
const RECORD: &str = "record";
/// What the attributes mean.
const FORMAT: &str = "format";
/// When it was written, for people.
const CHANGED: &str = "changed";

/// Those whose names cannot be chosen.
pub const OWN: [&str; 4] = [VERSION, RECORD, FORMAT, CHANGED];

/// The one that is written here.
const CURRENT_FORMAT: u8 = 1;

/// For so long an item stays after its lock was released. When DynamoDB has removed it, the next number is a host's clock: so this
/// is also by how much a clock may be slow before numbers go back.
const KEPT: Duration = Duration::from_secs(35 * 24 * 60 * 60);

/// What is there, and in particular what its number is.
pub fn row(item: &HashMap<String, AttributeValue>) -> Result<Row, Failure> {
    let text_of = |name: &str| match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => Ok(Some(text)),
        Some(_) => Err(foreign(name)),
    };
    let format = text_of(FORMAT)?.ok_or_else(|| foreign(FORMAT))?;
    if *format != CURRENT_FORMAT.to_string() {
        return Err(Failure::permanent("a newer version of this program has written it").with_hint("use that version here, too"));
    }
    let number: u64 = text_of(VERSION)?.and_then(|number| number.parse().ok()).ok_or_else(|| foreign(VERSION))?;
    let text = text_of(RECORD)?.cloned();
    // A table that was restored may have had another state of that number.
    let version = format!("{number} {}", text.as_deref().unwrap_or(""));
    Ok(Row { version: Some(version.into_bytes()), number, text, now: None })
}

/// Somebody else uses the table, and this key.
fn foreign(attribute: &str) -> Failure {
    Failure::permanent(format!("the item of that key is no lock: its `{attribute}` is not what a lock has"))
        .with_hint(format!("somebody else has written there; another table, or another name of the lock, or {REPAIR}, helps"))
}

/// Makes `request` write what it is to write if the state is still that of `seen`: the number, and also what is stored, as a table
/// that was restored from a backup counts its states again.
pub fn write(
    request: UpdateItemFluentBuilder,
    options: &Options,
    seen: &Row,
    next: u64,
    text: Option<&str>,
) -> UpdateItemFluentBuilder {
    let number = |number: u64| AttributeValue::N(number.to_string());
    let request = request
        .expression_attribute_names("#version", VERSION)
        .expression_attribute_names("#record", RECORD)
        .expression_attribute_names("#format", FORMAT)
        .expression_attribute_names("#changed", CHANGED)
        .expression_attribute_names("#ttl", &options.ttl)
        .expression_attribute_values(":next", number(next))
        .expression_attribute_values(":format", number(CURRENT_FORMAT.into()))
        .expression_attribute_values(":changed", AttributeValue::S(Timestamp::now().to_string()));
    let (mut set, mut remove) = (vec!["#version = :next", "#format = :format", "#changed = :changed"], Vec::new());
    let request = if text.is_some_and(is_held) {
        remove.push("#ttl");
        request
    } else {
        set.push("#ttl = :ttl");
        request.expression_attribute_values(":ttl", number(kept_until(next)))
    };
    let request = if let Some(text) = text {
        set.push("#record = :text");
        request.expression_attribute_values(":text", AttributeValue::S(text.to_owned()))
    } else {
        remove.push("#record");
        request
    };
    let update = [("SET", set), ("REMOVE", remove)].into_iter().filter(|(_, parts)| !parts.is_empty());
    let update: Vec<_> = update.map(|(word, parts)| format!("{word} {}", parts.join(", "))).collect();
    let request = request.update_expression(update.join(" "));
    if seen.version.is_none() {
        // Any item has the key.
        return request.condition_expression("attribute_not_exists(#key)").expression_attribute_names("#key", &options.key);
    }
    let request = request.expression_attribute_values(":number", number(seen.number));
    match &seen.text {
        Some(text) => request
            .condition_expression("#version = :number AND #format = :format AND #record = :seen")
            .expression_attribute_values(":seen", AttributeValue::S(text.clone())),
        None => request.condition_expression("#version = :number AND #format = :format AND attribute_not_exists(#record)"),
    }
}

/// Whether somebody holds what is stored so: what only tells how an acquisition went is nobody's. What cannot be read is kept.
fn is_held(text: &str) -> bool {
    let is_released = |entry: &Entry| entry.released.is_some() && entry.until.is_none();
    Record::parse(text.as_bytes()).map_or(true, |record| record.is_newer() || !record.entries().iter().all(is_released))
}

/// Which items are locks that somebody holds.
pub const IS_HELD: &str = "attribute_exists(#record) AND attribute_exists(#version) AND attribute_exists(#format)";

/// What [`IS_HELD`] calls them.
pub const HELD_NAMES: [(&str, &str); 3] = [("#record", RECORD), ("#version", VERSION), ("#format", FORMAT)];

/// In seconds since 1970, for DynamoDB. A number is at least the time of the first one, should this host's clock be slow.
fn kept_until(number: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().max(number / 1000) + KEPT.as_secs()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use aws_sdk_dynamodb::types::AttributeValue;

    use super::row;

    fn item(attributes: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
        attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn number(text: &str) -> AttributeValue {
        AttributeValue::N(text.to_owned())
    }

    #[test]
    fn an_item_without_a_record_is_free_and_keeps_its_number() {
        let row = row(&item(&[("version", number("7")), ("format", number("1"))])).expect("a row");
        assert_eq!((row.number, row.text, row.version.is_some()), (7, None, true));
    }

    #[test]
    fn what_somebody_else_has_written_is_nobody_s_lock() {
        let binary = AttributeValue::B(vec![1].into());
        for attributes in [
            vec![],
            vec![("version", number("7"))],
            vec![("version", number("x")), ("format", number("1"))],
            vec![("version", number("7.5")), ("format", number("1"))],
            vec![("version", number("7")), ("format", number("1")), ("record", binary)],
            vec![("version", number("7")), ("format", number("2"))],
        ] {
            assert!(row(&item(&attributes)).is_err(), "{attributes:?}");
        }
    }
}
