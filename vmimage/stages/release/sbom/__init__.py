"""What is in an image, for programs that look for licences and known vulnerabilities: its SBOM."""
