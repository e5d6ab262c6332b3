"""Train scorers on a user's data. Each fit writes a folder of weights and measurements that the scorer loads."""
