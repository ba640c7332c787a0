module observe

go 1.26.0
