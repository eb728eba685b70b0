#![no_main]

banger_fuzz::target!(context_id);
