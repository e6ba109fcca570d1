"""The tests, which mirror the package. What several of them share is in `helpers`."""
