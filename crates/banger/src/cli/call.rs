//! `banger helper call`: one method with parameters as they are given.

use super::problem::Problem;
use super::{Call, output, text};
use serde_json::value::RawValue;
use std::io::Read;

/// The longest parameters that are read from standard input: more than any helper takes.
const MAX_PARAMS: u64 = 64 << 20;

pub(crate) fn run(call: &Call) -> Result<(), Problem> {
    let params = params(&call.params)?;
    let client = crate::root::client(&call.reach.socket, call.reach.timeout).op_id(call.op_id.as_str());
    let result = client
        .call_raw(&call.method, &params)
        .map_err(|error| Problem::of_call(error, &call.reach.socket, call.reach.timeout))?;
    output::data(&format!("{}\n", text::json(result.get())))
}

fn params(given: &str) -> Result<Box<RawValue>, Problem> {
    let text = if given == "-" { read_all()? } else { given.to_owned() };
    RawValue::from_string(text).map_err(|error| {
        Problem::usage("the parameters are not JSON")
            .why(error)
            .fix(r#"an object in single quotes, such as '{"tap_name":"tap-fc-1"}'; or - and JSON on standard input"#)
    })
}

fn read_all() -> Result<String, Problem> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_PARAMS + 1).read_to_string(&mut text);
    match read {
        Err(error) => Err(Problem::usage("the parameters could not be read from standard input").why(error)),
        Ok(n) if n as u64 > MAX_PARAMS => {
            Err(Problem::usage("the parameters on standard input are longer than 64 MiB"))
        }
        Ok(_) => Ok(text),
    }
}
