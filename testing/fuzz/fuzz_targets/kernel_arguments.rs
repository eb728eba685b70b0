#![no_main]

banger_fuzz::target!(kernel_arguments);
