"""A daemon's report as people and machines read it; imports the report and nothing else of flannelpy."""
