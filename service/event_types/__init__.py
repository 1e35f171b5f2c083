"""What types of events mean while the service runs: the table in force, and where it is stored. Imports the store."""
