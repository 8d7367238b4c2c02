"""Access control: logins, visitors, and the guard around requests and served files."""
