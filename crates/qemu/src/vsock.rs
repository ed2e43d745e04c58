//! placeholder
pub(crate) struct Relay;
impl Relay { pub(crate) fn start(_s:&crate::socket::OwnSocket,_p:std::os::unix::net::UnixStream,_l:std::sync::Arc<crate::log::Log>,_m:std::sync::Arc<crate::metrics::Metrics>)->std::io::Result<()>{Ok(())} }
