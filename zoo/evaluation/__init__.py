"""What turns a trained model into published numbers and figures."""
