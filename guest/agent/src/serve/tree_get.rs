use banger_agent_api::*;
pub(super) async fn run<S: tokio::io::AsyncWrite + Unpin>(
    _c: GetTreeCall,
    mut s: S,
) -> Result<(), WireError> {
    super::calls::refuse(&mut s, AgentError::new(ErrorCode::Failed, "x")).await
}
