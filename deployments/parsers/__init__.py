"""From the text of an answer to its content, its reasoning and its tool calls: state machines that depend on the text alone."""
