#![no_main]

banger_fuzz::target!(resolver_address);
