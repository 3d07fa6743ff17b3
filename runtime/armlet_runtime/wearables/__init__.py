"""Wearables: one file per profile, each the single place of its UUIDs and packet layouts."""
