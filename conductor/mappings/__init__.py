"""Mappings: saved versions (`store`), the effect of an unsaved one (`preview`), two versions compared (`diff`)."""
