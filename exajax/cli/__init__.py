"""The commands of `exajax`, one module each: flags, a library call, printed output."""
