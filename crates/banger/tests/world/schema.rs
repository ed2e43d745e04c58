//! Whether a document is what `banger schema` says: with a reader of JSON Schema of our own, which knows the words that are
//! used and is stricter in one thing: a field that no schema names is wrong.

use serde_json::{Map, Value};
use std::process::Command;

/// Holds what a command printed against its schema, by the names of the command: `vm list`.
pub(crate) fn hold(program: &str, arguments: &[&str], document: &Value) {
    let mut words = vec!["schema"];
    words.extend(arguments.iter().take_while(|word| !word.starts_with('-')));
    // Behind the command come its names.
    while words.len() > 1 {
        let out = Command::new(program).args(&words).output().expect("banger schema");
        if out.status.success() {
            let schema: Value = serde_json::from_slice(&out.stdout).expect("a schema");
            return check(&schema, &schema, document, &mut words[1..].join("."));
        }
        words.pop();
    }
    panic!("no schema for {arguments:?}");
}

/// Panics where `value` is not as `schema`, a part of `root`, says.
pub(crate) fn check(root: &Value, schema: &Value, value: &Value, at: &mut String) {
    if let Err(why) = is_as(root, schema, value) {
        panic!("{at}: {why} in {value}");
    }
}

fn is_as(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let Value::Object(words) = schema else {
        return if schema == &Value::Bool(true) { Ok(()) } else { Err("nothing is allowed".into()) };
    };
    for (word, says) in words {
        match word.as_str() {
            "$ref" => {
                let pointer = says.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference within");
                is_as(root, root.pointer(pointer).expect(pointer), value)?;
            }
            "type" => {
                let named = says.as_array().map_or(vec![says], |all| all.iter().collect());
                if !named.iter().any(|name| has_type(value, name.as_str().expect("a type's name"))) {
                    return Err(format!("no {says}: {value}"));
                }
            }
            "anyOf" | "oneOf" => {
                let tried: Vec<_> = says.as_array().expect(word).iter().map(|one| is_as(root, one, value)).collect();
                if tried.iter().all(Result::is_err) {
                    return Err(format!("none of {}: {tried:?}", tried.len()));
                }
            }
            "enum" if !says.as_array().expect(word).contains(value) => {
                return Err(format!("not one of {says}: {value}"));
            }
            "const" if says != value => return Err(format!("not {says}: {value}")),
            "minimum" if value.as_f64().is_some_and(|number| number < says.as_f64().expect(word)) => {
                return Err(format!("less than {says}: {value}"));
            }
            "maximum" if value.as_f64().is_some_and(|number| number > says.as_f64().expect(word)) => {
                return Err(format!("more than {says}: {value}"));
            }
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| is_as(root, says, item))?;
            }
            "required" => {
                let missing = |name: &&Value| value.is_object() && value.get(name.as_str().expect(word)).is_none();
                if let Some(name) = says.as_array().expect(word).iter().find(missing) {
                    return Err(format!("{name} is missing"));
                }
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flat_map(Map::iter) {
                    let schema = says.get(name).ok_or_else(|| format!("{name} is in no schema"))?;
                    is_as(root, schema, inner).map_err(|why| format!("{name}: {why}"))?;
                }
            }
            "enum" | "const" | "minimum" | "maximum" => {}
            "$schema" | "$defs" | "description" | "default" | "format" | "additionalProperties" => {}
            other => panic!("a word of JSON Schema that the tests don't know: {other}"),
        }
    }
    Ok(())
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("a type that the tests don't know: {other}"),
    }
}
