//! Real guests for tests: boots them, talks to their serial console, tidies up.
