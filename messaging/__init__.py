"""The parts of the broker.

| file         | what it holds                                                                    |
|--------------|----------------------------------------------------------------------------------|
| `messages`   | the published messages, their encoding, and how a consumer addresses them        |
| `errors`     | why messages cannot be published, in RabbitMQ's own words, and what to do        |
| `connection` | a connection to RabbitMQ in which each request has a time limit                  |
| `rabbitmq`   | `RabbitmqFanout`: the exchange, the bindings and the consumers                   |
| `local`      | `LocalFanout`: queues in memory, for one process                                 |
"""
