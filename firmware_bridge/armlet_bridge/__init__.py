"""Virtual wearables and deployment of bundles to boards."""
