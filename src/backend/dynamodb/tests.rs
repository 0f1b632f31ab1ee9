use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::state;

fn item(attributes: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
    attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn number(text: &str) -> AttributeValue {
    AttributeValue::N(text.to_owned())
}

#[test]
fn an_item_without_a_record_is_free_and_keeps_its_number() {
    let state = state(&item(&[("version", number("7")), ("format", number("1"))])).expect("a state");
    assert_eq!((state.number, state.value, state.version.is_some()), (7, None, true));
}

#[test]
fn an_item_of_another_program_is_not_a_lock() {
    let binary = AttributeValue::B(vec![1].into());
    for attributes in [
        vec![],
        vec![("version", number("7"))],
        vec![("version", number("x")), ("format", number("1"))],
        vec![("version", number("7.5")), ("format", number("1"))],
        vec![("version", number("7")), ("format", number("1")), ("record", binary)],
        vec![("version", number("7")), ("format", number("2"))],
    ] {
        assert!(state(&item(&attributes)).is_err(), "{attributes:?}");
    }
}
