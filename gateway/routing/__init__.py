"""Where requests go: the serving plan that every worker follows."""
