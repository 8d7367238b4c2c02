"""Who may: logins, visitors, and what is served to whom."""
