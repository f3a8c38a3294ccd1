"""What a small network learns of signal and of noise, along training and at its end."""
