use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::state;

#[test]
fn only_an_item_of_ours_has_a_state() {
    let number = |text: &str| AttributeValue::N(text.to_owned());
    let (seven, format) = (("version", number("7")), ("format", number("1")));
    for (attributes, is_ours) in [
        (vec![seven.clone(), format.clone()], true),
        (vec![seven.clone(), format.clone(), ("record", AttributeValue::B(vec![1].into()))], false),
        (vec![seven.clone(), ("format", number("2"))], false),
        (vec![("version", number("7.5")), format], false),
        (vec![seven], false),
        (vec![], false),
    ] {
        let item: HashMap<_, _> = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(state(&item).is_ok_and(|state| state.number == 7 && state.value.is_none()), is_ours, "{item:?}");
    }
}
