"""The commands of `exajax`, one module each: flags in, one result out."""
