//! The server over its socket: who may speak, what is no request, limits, the log, its end.

mod common;

use common::*;

isolated! {
    fn a_call_is_answered() {
        let helper = Helper::start();
        let reply = helper.call(r#"{"method":"priv.process_running","params":{"pid":0,"api_sock":""},"op_id":"op-1"}"#);
        assert_eq!(reply, serde_json::json!({"ok": true, "result": {"running": false}}));
    }
}
