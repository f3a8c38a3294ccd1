"""The tests are a package, because one that is installed beside libraries is called tests too."""
