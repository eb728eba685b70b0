#![no_main]

banger_fuzz::target!(network_config);
