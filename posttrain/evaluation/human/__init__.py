"""Human evaluation: blinded sheets for annotators, and what their judgements say."""
