def looks_like(p):
    return False


read_card = None
