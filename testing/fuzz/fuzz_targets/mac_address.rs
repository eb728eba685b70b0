#![no_main]

banger_fuzz::target!(mac_address);
