/* For Coccinelle's parser, beside QEMU's own scripts/cocci-macro-file.h: macros that declare variables. */
#define g_autoptr(type) type *
#define P9ARRAY_REF(type) type *
