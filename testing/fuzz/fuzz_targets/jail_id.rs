#![no_main]

banger_fuzz::target!(jail_id);
