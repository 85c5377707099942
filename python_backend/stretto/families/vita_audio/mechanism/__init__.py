"""Multi-token prediction with MCTP modules: this family's mechanism (`stretto.family.mechanism`)."""
