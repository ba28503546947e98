"""The demo pair: two tiny models, trained from nothing on word problems that can be checked."""
