#![no_main]

banger_fuzz::target!(vcpu_count);
