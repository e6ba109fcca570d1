"""Verification: is an export the edit that it claims to be, and is a repeated run the same?"""
