"""What a training measures about itself: metrics, held-out pairs, samples, and when to stop early."""
